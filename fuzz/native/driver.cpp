// A small libFuzzer for compilers that have none: changed inputs, kept where the program went a new way (or one more often than
// before, by powers of two), as trace-pc sees it. Options are libFuzzer's: FOLDER..., -max_total_time=, -runs=, -seed=, -max_len=;
// -merge=1 NEW OLD writes to NEW what the inputs of OLD need to reach all their places. What ends the program is left in ./crash-input.
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using Bytes = std::vector<uint8_t>;
constexpr size_t kPlaces = size_t{1} << 16;
uint8_t counts[kPlaces];  // of this run
uint8_t ways[kPlaces];    // a bit for each power of two that a count has reached
int left = -1;            // the file that has the input of this run: nothing has to work when a run ends the program

bool add_ways(uint8_t* seen) {
  bool is_new = false;
  for (size_t i = 0; i < kPlaces; i += 8) {
    uint64_t eight;
    std::memcpy(&eight, counts + i, 8);
    if (eight == 0) continue;
    for (size_t k = i; k < i + 8; k++) {
      if (counts[k] == 0) continue;
      const uint8_t bit = static_cast<uint8_t>(1u << (31 - __builtin_clz(counts[k])));
      is_new = is_new || !(seen[k] & bit);
      seen[k] |= bit;
    }
  }
  return is_new;
}

void run(const Bytes& input) {
  std::memset(counts, 0, sizeof counts);
  if (ftruncate(left, 0) != 0 || pwrite(left, input.data(), input.size(), 0) < 0) std::perror("crash-input");
  const Bytes exact(input);
  LLVMFuzzerTestOneInput(exact.data(), exact.size());
}

size_t n_places(const uint8_t* seen) { return kPlaces - static_cast<size_t>(std::count(seen, seen + kPlaces, 0)); }

std::vector<Bytes> read_folder(const std::string& name) {
  std::vector<std::string> files;
  if (DIR* folder = opendir(name.c_str())) {
    while (const dirent* entry = readdir(folder)) files.push_back(name + "/" + entry->d_name);
    closedir(folder);
  } else {
    files.push_back(name);
  }
  std::sort(files.begin(), files.end());
  std::vector<Bytes> found;
  for (const std::string& file : files) {
    struct stat status;
    if (stat(file.c_str(), &status) != 0 || !S_ISREG(status.st_mode)) continue;
    std::ifstream stream(file, std::ios::binary);
    found.emplace_back(std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>());
  }
  return found;
}

class Changes {
 public:
  Changes(uint64_t seed, size_t most) : random_(seed), most_(most) {}

  size_t below(size_t n) { return random_() % n; }

  Bytes changed(const std::vector<Bytes>& kept) {
    Bytes input = kept[below(kept.size())];
    for (size_t n = 1 + below(5); n > 0; n--) change(input, kept[below(kept.size())]);
    if (input.size() > most_) input.resize(most_);
    return input;
  }

 private:
  void change(Bytes& input, const Bytes& other) {
    static const uint64_t odd[] = {0, 1, 2, 7, 8, 16, 31, 32, 63, 64, 127, 128, 255, 256, 4095, 4096, 32767, 32768, 65535, 0x7fffffff, 0x80000000, 0xffffffff,
                                   0x7fffffffffffffff, 0x8000000000000000, 0xffffffffffffffff};
    const size_t at = below(input.size() + 1), n = 1 + below(below(4) == 0 ? 64 : 8);
    const auto place = input.begin() + static_cast<std::ptrdiff_t>(at);
    const size_t left = input.size() - at;
    switch (below(9)) {
      case 0:
        if (left > 0) *place ^= static_cast<uint8_t>(1u << below(8));
        break;
      case 1:
        if (left > 0) *place = static_cast<uint8_t>(random_());
        break;
      case 2:
        if (left > 0) *place = static_cast<uint8_t>(*place + 1 - 2 * below(2) * below(16));
        break;
      case 3: {
        Bytes more(n);
        for (uint8_t& byte : more) byte = static_cast<uint8_t>(random_());
        input.insert(place, more.begin(), more.end());
        break;
      }
      case 4: input.erase(place, place + static_cast<std::ptrdiff_t>(std::min(n, left))); break;
      case 5: {
        const uint64_t value = odd[below(sizeof odd / sizeof *odd)];
        const size_t width = std::min(left, size_t{1} << below(4));
        if (width > 0) std::memcpy(&*place, &value, width);
        break;
      }
      case 6: {  // bytes of another input, put in between or over
        if (other.empty()) break;
        const size_t from = below(other.size()), taken = std::min(other.size() - from, 1 + below(64));
        const Bytes piece(other.begin() + static_cast<std::ptrdiff_t>(from), other.begin() + static_cast<std::ptrdiff_t>(from + taken));
        if (below(2)) input.insert(place, piece.begin(), piece.end());
        else std::copy_n(piece.begin(), std::min(taken, left), place);
        break;
      }
      case 7: {  // bytes of its own once more
        if (input.empty()) break;
        const size_t from = below(input.size()), taken = std::min(input.size() - from, n);
        const Bytes piece(input.begin() + static_cast<std::ptrdiff_t>(from), input.begin() + static_cast<std::ptrdiff_t>(from + taken));
        input.insert(place, piece.begin(), piece.end());
        break;
      }
      default:
        for (size_t i = 0; i < std::min(n, left); i++) place[static_cast<std::ptrdiff_t>(i)] = static_cast<uint8_t>(random_());
    }
  }

  std::mt19937_64 random_;
  size_t most_;
};

int merge(const std::string& folder, std::vector<Bytes> inputs) {
  std::stable_sort(inputs.begin(), inputs.end(), [](const Bytes& a, const Bytes& b) { return a.size() < b.size(); });
  size_t n = 0;
  for (const Bytes& input : inputs) {
    run(input);
    for (uint8_t& count : counts) count = count != 0;  // a place is enough to keep one, more often is not
    if (!add_ways(ways)) continue;
    char name[32];
    std::snprintf(name, sizeof name, "/%03zu", n++);
    std::ofstream(folder + name, std::ios::binary).write(reinterpret_cast<const char*>(input.data()), static_cast<std::streamsize>(input.size()));
  }
  std::fprintf(stderr, "%zu of %zu inputs, cov: %zu\n", n, inputs.size(), n_places(ways));
  return 0;
}

}  // namespace

extern "C" void __sanitizer_cov_trace_pc() {
  const uintptr_t pc = reinterpret_cast<uintptr_t>(__builtin_return_address(0));
  uint8_t& count = counts[(pc * 0x9e3779b97f4a7c15u) >> 48];
  count = static_cast<uint8_t>(count + (count != 255));
}

int main(int n_arguments, char** arguments) {
  double seconds = 0;
  size_t runs = 0, most = 4096, seed = static_cast<size_t>(std::chrono::steady_clock::now().time_since_epoch().count());
  bool is_merge = false;
  std::vector<std::string> folders;
  for (int i = 1; i < n_arguments; i++) {
    const std::string argument = arguments[i];
    const auto value = [&](const char* name) {
      const size_t n = std::strlen(name);
      return argument.compare(0, n, name) == 0 ? argument.c_str() + n : nullptr;
    };
    if (const char* given = value("-max_total_time=")) seconds = std::atof(given);
    else if (const char* given = value("-runs=")) runs = std::strtoull(given, nullptr, 10);
    else if (const char* given = value("-seed=")) seed = std::strtoull(given, nullptr, 10);
    else if (const char* given = value("-max_len=")) most = std::strtoull(given, nullptr, 10);
    else if (value("-merge=1")) is_merge = true;
    else if (argument[0] != '-') folders.push_back(argument);  // others of libFuzzer's options mean nothing here
  }
  left = open("crash-input", O_WRONLY | O_CREAT | O_TRUNC, 0644);
  std::vector<Bytes> kept;
  for (size_t i = is_merge ? 1 : 0; i < folders.size(); i++) {
    const std::vector<Bytes> found = read_folder(folders[i]);
    kept.insert(kept.end(), found.begin(), found.end());
  }
  if (is_merge) {
    const int code = folders.empty() ? 2 : merge(folders[0], kept);
    unlink("crash-input");
    return code;
  }
  kept.emplace_back();
  for (const Bytes& input : kept) {
    run(input);
    add_ways(ways);
  }
  Changes changes(seed, most);
  size_t n = kept.size();
  const auto begin = std::chrono::steady_clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(); };
  for (; (runs == 0 || n < runs) && (seconds == 0 || n % 16 != 0 || elapsed() < seconds); n++) {
    const Bytes input = changes.changed(kept);
    run(input);
    if (!add_ways(ways)) continue;
    kept.push_back(input);
    if (folders.empty()) continue;
    char name[48];
    std::snprintf(name, sizeof name, "/new-%zu-%zu", seed, n);
    std::ofstream(folders[0] + name, std::ios::binary).write(reinterpret_cast<const char*>(input.data()), static_cast<std::streamsize>(input.size()));
  }
  unlink("crash-input");
  std::fprintf(stderr, "cov: %zu corpus: %zu\nstat::number_of_executed_units: %zu\n", n_places(ways), kept.size(), n);
  return 0;
}
