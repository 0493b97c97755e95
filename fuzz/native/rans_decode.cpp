// A hostile rans chunk: every set of kernels gives the same symbols or the same refusal, however much may be read behind it.
#include "chunk.hpp"
#include "input.hpp"

using namespace spqfmt;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input in(data, size);
  const size_t raw_bytes = in.bits(2), behind = in.byte(), parts = 1 + in.byte() % 4;
  const std::vector<uint8_t> chunk = in.rest();
  std::vector<uint8_t> longer = chunk;
  longer.insert(longer.end(), 8 * behind, 0xa5);
  longer.shrink_to_fit();
  fuzz::Same<std::string> words;
  fuzz::Same<std::vector<uint8_t>> symbols;
  fuzz::with_each_variant([&] {
    std::vector<uint8_t> found(raw_bytes), again(raw_bytes);
    const std::string said = fuzz::outcome([&] { decode_chunk(chunk.data(), chunk.size(), chunk.size(), found.data(), raw_bytes); });
    const std::string said_again = fuzz::outcome([&] {
      ChunkDecoder decoder(longer.data(), chunk.size(), longer.size(), raw_bytes);
      decoder.share_among(parts);
      for (size_t i = 0; i < decoder.n_batches(); i++) {
        fuzz::check(decoder.batch_begin(i) <= decoder.batch_end(i) && decoder.batch_end(i) <= chunk.size(), "batches are not in the chunk");
        decoder.decode_batch(i, again.data());
      }
    });
    words.see(said, "kernels differ in what they refuse");
    words.see(said_again, "what follows a chunk changes what is refused");
    if (!said.empty()) return;
    symbols.see(found, "kernels differ in the symbols");
    symbols.see(again, "what follows a chunk changes its symbols");
  });
  return 0;
}
