"""What can go wrong, as a new user meets it, and what must be said then.

Each row is a situation, the command line, the exit code (1: the file or model is bad, 2: wrong use) and words that the
one line on stderr must have. Names in braces are files that the fixture `files` of test_messages makes.
"""

UP = "model.layers.0.mlp.up_proj.weight"
SPQ_ONLY = "give an .spq file, which `spqfmt pack` makes"
GET_AGAIN = "get it again"

SITUATIONS: list[tuple[str, str, int, list[str]]] = [
    # a file that is not there
    ("inspect, no file", "inspect {dir}/none.spq", 2, ["{dir}/none.spq: no such file or folder"]),
    ("inspect, a name almost right", "inspect {dir}/god.spq", 2, ["did you mean {dir}/good.spq?"]),
    ("verify, no folder", "verify {dir}/nowhere/m.spq", 2, ["{dir}/nowhere: no such folder"]),
    ("diff, no second file", "diff {good.spq} {dir}/none.spq", 2, ["{dir}/none.spq: no such file or folder"]),
    ("unpack, no file", "unpack {dir}/none.spq {dir}/o", 2, ["{dir}/none.spq: no such file or folder"]),
    ("repack, no file", "repack {dir}/none.spq {dir}/o.spq", 2, ["{dir}/none.spq: no such file or folder"]),
    ("plan, no file", "plan {dir}/none.spq", 2, ["{dir}/none.spq: no such file or folder"]),
    ("run, no file", "run {dir}/none.spq --prompt x", 2, ["{dir}/none.spq: no such file or folder"]),
    ("eval, no file", "eval {dir}/none.spq --text {text.txt}", 2, ["{dir}/none.spq: no such file or folder"]),
    (
        "eval, no text",
        "eval {good.spq} --text {dir}/none.txt",
        2,
        ["{dir}/none.txt: no such file or folder"],
    ),
    *(
        (
            f"{command.split()[0]}, a name on a hub",
            command,
            2,
            ["no-owner: no such folder; a model on a hub must be"],
        )
        for command in ("run no-owner/name --prompt x", "inspect {good.spq} --reference no-owner/name")
    ),
    (
        "pack, a folder's model that is not there",
        "pack {model}/none {dir}/o.spq",
        2,
        ["{model}/none: no such file or"],
    ),
    ("push, a name that is none", "push {good.spq} name", 2, ["name: no model on a hub; give OWNER/NAME"]),
    ("push, a folder without one", "push {model} owner/name", 2, ["{model}: no packed model in it"]),
    ("pull, a name that is none", "pull {dir}/name", 2, ["{dir}/name: no model on a hub; give OWNER/NAME"]),
    ("eval, nothing to score", "eval {good.spq}", 2, ["give either --text or --tasks"]),
    ("eval, two things", "eval {good.spq} --text {text.txt} --tasks x", 2, ["give either --text or --tasks"]),
    ("eval, tasks in windows", "eval {good.spq} --tasks x --window 9", 2, ["--window goes with --text"]),
    ("eval, a text's limit", "eval {good.spq} --text {text.txt} --limit 9", 2, ["--limit goes with --tasks"]),
    ("bench, no file", "bench {dir}/none.spq", 2, ["{dir}/none.spq: no such file or folder"]),
    ("pack, no source", "pack {dir}/none {dir}/o.spq", 2, ["{dir}/none: no such file or folder"]),
    (
        "inspect, no reference",
        "inspect {good.spq} --reference {dir}/none",
        2,
        ["{dir}/none: no such file or folder"],
    ),
    (
        "repack, no rates",
        "repack {good.spq} {dir}/o.spq --partial speed --rates {dir}/none.json",
        2,
        ["{dir}/none.json: no such file or folder"],
    ),
    (
        "pack, no calibration text",
        "pack {model} {dir}/o.spq --method gptq --calibration {dir}/none.txt",
        2,
        ["{dir}/none.txt: no such file or folder"],
    ),
    # a folder where a file should be
    ("inspect, a folder", "inspect {model}", 2, ["{model}: is a folder", SPQ_ONLY]),
    ("verify, a folder", "verify {model}", 2, ["{model}: is a folder", SPQ_ONLY]),
    ("diff, a folder", "diff {good.spq} {model}", 2, ["{model}: is a folder", SPQ_ONLY]),
    ("unpack, a folder", "unpack {model} {dir}/o", 2, ["{model}: is a folder", SPQ_ONLY]),
    ("repack, no such block", "repack {good.spq} {dir}/o.spq --block 5KiB", 2, ["block 5KiB: choose 4KiB"]),
    (
        "repack, block and machine",
        "repack {good.spq} {dir}/o.spq --block 8KiB --for gpu",
        2,
        ["give --block or --for, not both"],
    ),
    ("repack, a folder", "repack {model} {dir}/o.spq", 2, ["{model}: is a folder", SPQ_ONLY]),
    (
        "plan, a folder",
        "plan {model}",
        2,
        ["{model}: only an .spq file can be run from packed weights; pack it first"],
    ),
    (
        "run, an empty folder",
        "run {nothing} --prompt x",
        1,
        ["{nothing}: no .safetensors files in this folder; give"],
    ),
    (
        "pack, an empty folder",
        "pack {nothing} {dir}/o.spq",
        1,
        ["{nothing}: no .safetensors files in this folder"],
    ),
    # something else
    ("inspect, a text", "inspect {text.spq}", 1, ["{text.spq}: not a .spq file; `spqfmt pack` makes one"]),
    (
        "verify, an empty file",
        "verify {empty.spq}",
        1,
        ["{empty.spq}: not a .spq file; `spqfmt pack` makes one"],
    ),
    ("run, a text", "run {text.spq} --prompt x", 1, ["{text.spq}: not a .spq file"]),
    ("eval, a text", "eval {text.spq} --text {text.txt}", 1, ["{text.spq}: not a .spq file"]),
    (
        "pack, a text",
        "pack {text.txt} {dir}/o.spq",
        1,
        ["{text.txt}: not a model that can be imported; give a model's folder, or"],
    ),
    (
        "pack, a packed file",
        "pack {good.spq} {dir}/o.spq",
        1,
        ["{good.spq}: is packed already; give the model that it was made from, or use `spqfmt repack`"],
    ),
    ("pack, no GGUF", "pack {no.gguf} {dir}/o.spq", 1, ["{no.gguf}: broken GGUF file", "download it again"]),
    (
        "inspect, another list",
        "inspect {listing.spq.index.json}",
        1,
        ["{listing.spq.index.json}: not an index of"],
    ),
    (
        "repack, no rates in it",
        "repack {good.spq} {dir}/o.spq --partial speed --rates {rates.json}",
        2,
        ["rates.json"],
    ),
    *(
        (
            f"{what}, {file}",
            f"{command} {{{file}.json}}",
            2,
            [f"{{{file}.json}}: ", *words],
        )
        for what, command, file, *words in (
            (
                "repack, rates of a device",
                "repack {good.spq} {dir}/o.spq --partial speed --rates",
                "device_rates",
                "rates of a device, for `spqfmt plan --device-rates`",
                "`spqfmt bench --rates` prints",
            ),
            (
                "pack, too long for rates",
                "pack {model} {dir}/o.spq --partial speed --rates",
                "long",
                "larger than 16 MiB",
                "`spqfmt bench --rates` prints",
            ),
            (
                "plan, decode rates",
                "plan {good.spq} --device cuda --device-rates",
                "decode_rates",
                "decode rates of `spqfmt bench --rates`, which pack and repack take",
                "tools/gpu/gpu_check.py --rates FILE",
            ),
            (
                "plan, no rates in it",
                "plan {good.spq} --device cuda --device-rates",
                "rates",
                "neither a readable JSON file nor one of rtx4060",
            ),
        )
    ),
    # what is called what it is
    *(
        (f"{command.split()[0]}, {what}", command.format(path), code, [f"{path}: ", *words])
        for what, path, code, *words in (
            ("no path at all", "{dir}/none.spq", 2, "no such file or folder"),
            ("a link that leads nowhere", "{dangling.spq}", 1, "a link to gone, which is not there"),
            ("an address of no kind", "nothing://host/m.spq", 2, "address"),
            ("a pipe", "{pipe}", 2, "is a pipe, not a file"),
            ("a device", "/dev/null", 2, "is a device, not a file"),
            ("a pointer", "{pointer.spq}", 1, "a Git LFS pointer", "git lfs pull"),
            ("a page", "{page.spq}", 1, "a web page, not the file itself", "download it again"),
            ("a pointer to a list", "{pointer.spq.index.json}", 1, "a Git LFS pointer", "git lfs pull"),
            ("an empty list", "{empty.spq.index.json}", 1, "an empty file, not an index of shards"),
        )
        for command in (
            "inspect {}",
            "verify {}",
            "diff {{good.spq}} {}",
            "diff {} {{good.spq}}",
            "unpack {} {{dir}}/o",
            "repack {} {{dir}}/o.spq",
            "plan {}",
            "run {} --prompt x",
            "eval {} --text {{text.txt}}",
            "eval {{good.spq}} --text {{text.txt}} --reference {}",
            "inspect {{good.spq}} --reference {}",
            "bench {}",
        )
    ),
    *(
        (f"{command.split()[0]}, an empty path", command, 2, ["an empty path; give a name, or . for"])
        for command in (
            "inspect {none}",
            "verify {none}",
            "diff {good.spq} {none}",
            "unpack {none} {dir}/o",
            "unpack {good.spq} {none}",
            "repack {none} {dir}/o.spq",
            "repack {good.spq} {none}",
            "plan {none}",
            "run {none} --prompt x",
            "eval {none} --text {text.txt}",
            "eval {good.spq} --text {none}",
            "eval {good.spq} --text {text.txt} --reference {none}",
            "inspect {good.spq} --reference {none}",
            "inspect {good.spq} --html {none}",
            "bench {none}",
            "pack {none} {dir}/o.spq",
            "pack {model} {none}",
            "pack {model} {dir}/o.spq --method gptq --calibration {none}",
        )
    ),
    *(
        (
            f"{command.split()[0]}, {what} called as a packed model",
            command.format(path),
            1,
            [f"{path}: {words}"],
        )
        for what, path, words in (
            ("an empty folder", "{folder.spq}", "no .safetensors files in this folder; give the folder that"),
            ("an empty folder of a list", "{folder.spq.index.json}", "no .safetensors files in this folder"),
        )
        for command in (
            "pack {} {{dir}}/o.spq",
            "run {} --prompt x",
            "eval {} --text {{text.txt}}",
            "eval {{good.spq}} --text {{text.txt}} --reference {}",
            "inspect {{good.spq}} --reference {}",
        )
    ),
    *(
        (f"{command.split()[0]}, {what} as a text", command.format(path), 2, [f"{path}: ", *words])
        for what, path, *words in (
            ("a pointer", "{pointer.txt}", "a Git LFS pointer", "git lfs pull"),
            ("a pointer of lines", "{pointer.jsonl}", "a Git LFS pointer", "git lfs pull"),
            ("a page", "{page.txt}", "a web page, not the file itself", "download it again"),
            ("a page behind a mark", "{marked.txt}", "a web page, not the file itself", "download it again"),
            ("a pipe", "{pipe}", "is a pipe, not a file; save what it gives as a file"),
            ("a device", "/dev/zero", "is a device, not a file; save what it gives as a file"),
            ("no UTF-8", "{binary.txt}", "not UTF-8 (invalid start byte at byte 0)"),
        )
        for command in (
            "eval {{good.spq}} --text {}",
            "pack {{model}} {{dir}}/o.spq --method gptq --calibration {}",
        )
    ),
    *(
        (
            f"pack, {what} called as a packed model",
            f"pack {{{name}}} {{dir}}/o.spq",
            1,
            [f"{{{name}}}: {words}"],
        )
        for what, name, words in (
            ("a pointer", "pointer.spq", "a Git LFS pointer, not the file itself"),
            ("a page", "page.spq", "a web page, not the file itself"),
            ("an empty file", "empty.spq", "an empty file; get it again"),
            ("an empty list", "empty.spq.index.json", "an empty file; get it again"),
            ("a text", "text.spq", "not a model that can be imported"),
            ("a list of something", "listing.spq.index.json", "not a model that can be imported"),
            ("an empty file of weights", "empty.pt", "an empty file; download it again"),
        )
    ),
    ("pack, shards", "pack {shards} {dir}/o.spq", 1, ["{shards}: is packed already"]),
    ("bench, shards", "bench {shards}", 2, ["{shards}: a model in shards", "{shard}, or take --only run"]),
    (
        "plan, a folder called as a packed model",
        "plan {folder.spq}",
        2,
        ["{folder.spq}: only an .spq file can be run from packed weights"],
    ),
    (
        "plan, a pipe as rates",
        "plan {good.spq} --device cuda --device-rates {pipe}",
        2,
        ["device rates {pipe}: neither a readable JSON file"],
    ),
    *(
        (
            f"{command.split()[0]}, a pipe in the folder",
            command,
            1,
            ["{piped}/model.safetensors: is a pipe, not a file; save"],
        )
        for command in ("pack {piped} {dir}/o.spq", "run {piped} --prompt x")
    ),
    *(
        (f"{command.split()[0]}, {what}", command.format(path), 2, words)
        for what, path, *words in (
            ("no folder on the way", "{dir}/nowhere/m/x.spq", "{dir}/nowhere: no such folder"),
            ("a file on the way", "{text.txt}/m.spq", "{text.txt}: is a file, not a folder"),
        )
        for command in (
            "verify {}",
            "run {} --prompt x",
            "pack {} {{dir}}/o.spq",
            "eval {{good.spq}} --text {}",
        )
    ),
    (
        "pack, an address",
        "pack https://host/m {dir}/o.spq",
        2,
        ["https://host/m: an address, not a file; download it"],
    ),
    *(
        (f"{command.split()[0]}, {what} as a source", command.format(path), code, words)
        for what, path, code, *words in (
            ("no path at all", "{dir}/none", 2, "{dir}/none: no such file or folder"),
            ("a pipe", "{pipe}", 2, "{pipe}: is a pipe, not a file"),
            (
                "diffusers",
                "{diffusers}",
                1,
                "{diffusers}: no weights in the folders that model_index.json names",
            ),
            (
                "a hub's cache",
                "{models--o--n}",
                1,
                "{models--o--n}: the cache of a hub",
                "{models--o--n}/snapshots/0a1b",
            ),
            ("the root of caches", "{hub}", 1, "{hub}: the cache of a hub", "models--o--n/snapshots/0a1b"),
            ("a missing blob", "{dangling}", 1, "{dangling}/model.safetensors: a link to ../blobs/gone"),
            ("a missing tokenizer", "{dangling_too}", 1, "{dangling_too}/tokenizer.json: a link to gone"),
            ("a pointer", "{pointer}", 1, "{pointer}/model.safetensors: a Git LFS pointer", "git lfs pull"),
            ("a pointer of GGUF", "{pointer.gguf}", 1, "{pointer.gguf}: a Git LFS pointer", "git lfs pull"),
            ("a page", "{page}", 1, "{page}/config.json: a web page", "download it again"),
        )
        for command in ("pack {} {{dir}}/o.spq", "run {} --prompt x", "inspect {{good.spq}} --reference {}")
    ),
    *(
        (f"{command.split()[0]}, {what} to write", command.format(path), 2, words)
        for what, path, *words in (
            ("no folder", "{dir}/nowhere/o.spq", "{dir}/nowhere: no such folder"),
            ("a folder that is a file", "{text.txt}/o.spq", "{text.txt}: is a file, not a folder"),
            ("an address", "s3://b/o.spq", "s3://b/o.spq: an address, not a file"),
            ("a folder", "{folder.spq}", "{folder.spq}: is a folder, not a file"),
            ("a pipe", "{pipe}", "{pipe}: is a pipe, which a file would replace"),
        )
        for command in (
            "pack {{model}} {} --force",
            "repack {{good.spq}} {} --force",
            "inspect {{good.spq}} --html {}",
            "inspect {{good.spq}} --png {}",
            "eval {{good.spq}} --text {{text.txt}} --html {}",
            "plan {{good.spq}} --html {}",
        )
    ),
    # damage
    *(
        (f"{name}, {what}", f"{name} {{{file}}} {rest}", 1, [f"{{{file}}}: {words}", advice])
        for name, rest in (
            ("inspect", ""),
            ("verify", ""),
            ("diff", "{good.spq}"),
            ("unpack", "{dir}/o"),
            ("repack", "{dir}/o.spq"),
            ("plan", ""),
            ("run", "--prompt x"),
            ("eval", "--text {text.txt}"),
        )
        for what, file, words, advice in (
            ("cut short", "cut.spq", "the file ends before its end is due", GET_AGAIN),
            ("damaged index", "index.spq", "the index does not match its digest", GET_AGAIN),
            ("newer format", "newer.spq", "format version 7, this spqfmt reads 1", "update spqfmt"),
        )
    ),
    *(
        (
            f"{command.split()[0]}, damaged weights",
            command,
            1,
            [f"{{damaged.spq}}: tensor '{UP}', codes", "checksum", GET_AGAIN],
        )
        for command in (
            "verify {damaged.spq}",
            "diff {damaged.spq} {good.spq} --error",
            "unpack {damaged.spq} {dir}/o",
            "repack {damaged.spq} {dir}/o.spq --codec zstd",
            "run {damaged.spq} --prompt x",
            "eval {damaged.spq} --text {text.txt}",
            "inspect {damaged.spq} --measure",
            "inspect {good.spq} --reference {damaged.spq}",
        )
    ),
    # shards
    (
        "inspect, the name that the shards were packed to",
        "inspect {dir}/parts.spq",
        2,
        ["{dir}/parts.spq: no such file", "the model is in shards, give {dir}/parts.spq.index.json"],
    ),
    (
        "run, one shard",
        "run {shard} --prompt x",
        1,
        ["{shard}: only shard 1 of", "give {dir}/parts.spq.index.json"],
    ),
    (
        "unpack, one shard",
        "unpack {shard} {dir}/o",
        1,
        ["{shard}: only shard 1 of", "give {dir}/parts.spq.index.json"],
    ),
    (
        "verify, a shard is gone",
        "verify {moved.spq.index.json}",
        1,
        ["{dir}/moved-00001-of-", "not there, but moved.spq.index.json lists it"],
    ),
    # sources
    (
        "run, no config",
        "run {no_config} --prompt x",
        1,
        ["{no_config}: no config.json in it, so its weights cannot become a model"],
    ),
    (
        "pack, broken config",
        "pack {bad_config} {dir}/o.spq",
        1,
        ["{bad_config}/config.json: not valid JSON", "download"],
    ),
    (
        "pack, pickles",
        "pack {pickle} {dir}/o.spq",
        1,
        ["{pickle}/pytorch_model.bin: torch cannot load it as plain tensors", "download it again"],
    ),
    (
        "pack, weights cut short",
        "pack {cut_weights} {dir}/o.spq",
        1,
        ["{cut_weights}/model.safetensors: broken", "download it again"],
    ),
    (
        "pack, NaN",
        "pack {not_finite} {dir}/o.spq --method rtn",
        1,
        [f"{{not_finite}}: tensor '{UP}' holds NaN", "lossless keeps it"],
    ),
    (
        "pack gptq, unknown model",
        "pack {unknown} {dir}/o.spq --method gptq",
        1,
        ["{unknown}: calibration", "zork", "needs no calibration", "ecq with --no-calibration"],
    ),
    (
        "pack gptq, no tokenizer",
        "pack {no_tokenizer} {dir}/o.spq --method gptq --samples 2",
        1,
        [
            "{no_tokenizer}: calibration needs the model's tokenizer",
            "put its files beside the weights",
            "--no-calibration",
        ],
    ),
    (
        "run, unknown model",
        "run {unknown.spq} --prompt x",
        1,
        ["{unknown.spq}: transformers cannot use its config.json", "zork", "a newer transformers may"],
    ),
    (
        "plan, unknown model",
        "plan {unknown.spq}",
        1,
        ["{unknown.spq}: transformers cannot use its config.json", "zork", "a newer transformers may"],
    ),
    (
        # transformers warns of each token that has no embedding, before it gives up
        "plan, fewer embeddings than tokens",
        "plan {few_tokens.spq}",
        1,
        ["{few_tokens.spq}:"],
    ),
    (
        "run, no tokenizer",
        "run {no_tokenizer.spq} --prompt x",
        1,
        ["{no_tokenizer.spq}: no tokenizer in it", "pack it from a folder that has its tokenizer"],
    ),
    (
        "eval, no tokenizer",
        "eval {no_tokenizer.spq} --text {text.txt}",
        1,
        ["{no_tokenizer.spq}: no tokenizer in it"],
    ),
    (
        "run, a tensor is missing",
        "run {incomplete.spq} --prompt x",
        1,
        ["{incomplete.spq}: LlamaForCausalLM needs tensors", UP],
    ),
    *(
        (f"bench --rates with {given}", f"bench --rates {given}", 2, ["--rates", f"leave out {name}"])
        for given, name in (
            ("{good.spq}", "FILE"),
            ("--only codecs", "--only"),
            ("--quick --html {dir}/o.html", "--html and --quick"),
        )
    ),
    # what other libraries refuse
    *(
        (
            f"{command.split()[0]}, a token without a row",
            command,
            1,
            ["{more_tokens}: ", 'token "<x15>" has id 273, the embedding has 264 rows'],
        )
        for command in (
            "run {more_tokens} --prompt <x15>",
            "eval {more_tokens} --text {token.txt}",
            "pack {more_tokens} {dir}/o.spq --method gptq --calibration {token.txt} --seq-len 16",
        )
    ),
    (
        "eval, a token without a row in the reference",
        "eval {more_tokens} --max-tokens 5 --text {token.txt} --reference {whisper}",
        1,
        ["{whisper}: a WhisperForConditionalGeneration: it takes input_features"],
    ),
    *(
        (
            f"run, a chat template that fails: {file}",
            f"run {{{file}}} --prompt x",
            1,
            [f"{{{file}}}: the model's chat template failed: {words}", "--raw"],
        )
        for file, words in (
            ("raises", "no system"),
            ("no_syntax", "unexpected 'end of template'"),
            ("no_name", "'user' is undefined"),
            ("no_filter", "No filter named 'zork'"),
        )
    ),
    *(
        (
            f"{command.split()[0]}, a model that transformers cannot build: {file}",
            f"{command.split()[0]} {{{file}}} {' '.join(command.split()[1:])}",
            1,
            [f"{{{file}}}: ", *words],
        )
        for file, *words in (
            ("no_act", "LlamaForCausalLM", "unknown 'zork'"),
            ("bad_heads", "hidden size (64) is not a multiple", "config.json"),
        )
        for command in (
            "run --prompt x",
            "eval --text {text.txt}",
            "pack {dir}/o.spq --method gptq --samples 2 --seq-len 16",
        )
    ),
    ("run, no such tokenizer", "run {bad_tokenizer} --prompt x", 1, ["{bad_tokenizer}: ", "tokenizer"]),
    *(
        (
            f"run, no generation config: {file}",
            f"run {{{file}}} --prompt x",
            1,
            [f"{{{file}}}: transformers cannot use its generation_config.json: {words}", "leave out"],
        )
        for file, words in (("bad_generation", "Expecting property name"), ("odd_generation", "it is not a"))
    ),
    (
        "run, sampling that makes no sense",
        "run {bad_sampling} --prompt x --temperature 1",
        1,
        ["{bad_sampling}: LlamaForCausalLM cannot generate: ", "`penalty`", "temperature 0"],
    ),
    *(
        (
            f"{command.split()[0]}, a tokenizer of two",
            command,
            1,
            ["{rag}: ", "RagTokenizer, which cuts no text alone"],
        )
        for command in (
            "run {rag} --prompt x",
            "eval {rag} --text {text.txt}",
            "pack {rag} {dir}/o.spq --method gptq",
        )
    ),
    *(
        (
            f"{command.split()[0]}, a nested config",
            command,
            1,
            ["{nested}/config.json: nested deeper than any config"],
        )
        for command in ("run {nested} --prompt x", "pack {nested} {dir}/o.spq")
    ),
    *(
        (
            f"{command.split()[0]}, a text of other letters",
            command,
            1,
            [f"{{dna}}: the tokenizer cannot cut the {what}"],
        )
        for what, command in (
            ("prompt", "run {dna} --prompt x"),
            ("text", "eval {dna} --text {text.txt}"),
            ("calibration text", "pack {dna} {dir}/o.spq --method gptq --calibration {text.txt}"),
        )
    ),
    ("run, whisper", "run {whisper} --prompt x", 1, ["{whisper}: a Whisper", "it takes input_features"]),
    ("eval, whisper", "eval {whisper} --text {text.txt}", 1, ["{whisper}: a Whisper", "input_features"]),
    ("run, bert", "run {bert} --prompt x", 1, ["{bert}: a BertForMaskedLM", "continues a text"]),
    ("eval, bert", "eval {bert} --text {text.txt}", 1, ["{bert}: a BertForMaskedLM", "continues a text"]),
    ("eval, t5", "eval {t5} --text {text.txt}", 1, ["{t5}: a T5ForConditionalGeneration", "an encoder"]),
    (
        "run, a prompt longer than the table of positions",
        f"run {{gpt2}} --prompt {'x' * 128}",
        1,
        ["{gpt2}: the prompt has 128 tokens, the model takes 128 with its answer; shorten it"],
    ),
    # output
    (
        "pack, output is there",
        "pack {model} {good.spq}",
        2,
        ["{good.spq} is there already; --force replaces it"],
    ),
    ("pack, another ending", "pack {model} {dir}/o", 2, ["{dir}/o: the name of a packed model ends in .spq"]),
    ("pack, no folder for it", "pack {model} {dir}/nowhere/o.spq", 2, ["{dir}/nowhere: no such folder"]),
    ("unpack, a full folder", "unpack {good.spq} {model}", 2, ["{model}: exists and is not an empty folder"]),
    (
        "unpack, as two things",
        "unpack {good.spq} {dir}/o --as compressed-tensors --keep-packed",
        2,
        ["a folder that is kept packed is not written as compressed-tensors", "leave one"],
    ),
    ("repack, onto itself", "repack {good.spq} {good.spq}", 2, ["{good.spq} is there already; --force"]),
    (
        "inspect, no folder for the page",
        "inspect {good.spq} --html {dir}/nowhere/o.html",
        2,
        ["{dir}/nowhere: no such folder"],
    ),
    # options
    ("no such command", "inspct {good.spq}", 2, ["No such command 'inspct'", "spqfmt --help"]),
    ("no such option", "inspect {good.spq} --nope", 2, ["No such option '--nope'", "spqfmt inspect --help"]),
    ("no file given", "verify", 2, ["Missing argument 'FILE'", "spqfmt verify --help"]),
    (
        "no prompt",
        "run {good.spq}",
        2,
        ["give --prompt TEXT, --prompt - or --prompts FILE", "spqfmt run --help"],
    ),
    (
        "unknown key",
        "inspect {good.spq} --sort weight",
        2,
        ["'weight' is not one of 'file'", "spqfmt inspect --help"],
    ),
    (
        "no tensor matches",
        "inspect {good.spq} --tensor layers",
        2,
        ["no tensor matches layers", "model.embed_tokens.weight"],
    ),
    ("error without reference", "inspect {good.spq} --sort error", 2, ["--sort error needs --reference"]),
    (
        "diff, no tensor matches",
        "diff {good.spq} {good.spq} --tensor x",
        2,
        ["no tensor of either file has such a name"],
    ),
    (
        "unknown method",
        "pack {model} {dir}/o.spq --method magic",
        2,
        ["unknown method 'magic'; there are", "gptq"],
    ),
    (
        "bits of lossless",
        "pack {model} {dir}/o.spq --method lossless --bits 4",
        2,
        ["method lossless takes no --bits"],
    ),
    (
        "bits without a method",
        "pack {model} {dir}/o.spq --bits 4",
        2,
        ["--bits without --method, and by default nothing is quantized; it goes with", "ecq", "rtn"],
    ),
    (
        "calibration without a method",
        "pack {model} {dir}/o.spq --samples 4 --gradients",
        2,
        ["--gradients and --samples without --method", "it goes with ecq"],
    ),
    ("too many bits", "pack {model} {dir}/o.spq --method rtn --bits 9", 2, ["bits"]),
    (
        "bits no number",
        "pack {model} {dir}/o.spq --method rtn --bits x",
        2,
        ["'--bits'", "'x'", "pack --help"],
    ),
    ("no size", "pack {model} {dir}/o.spq --shard-size huge", 2, ["'huge' is not a size like 300MiB"]),
    ("no plan", "pack {model} {dir}/o.spq --partial foo", 2, ["every:N", "'foo'"]),
    (
        "calibration for rtn",
        "pack {model} {dir}/o.spq --method rtn --calibration {text.txt}",
        2,
        ["rtn needs no calibration"],
    ),
    ("ceiling no size", "plan {good.spq} --memory lots", 2, ["'lots' is not a size like 300MiB"]),
    ("ceiling too low", "plan {good.spq} --memory 10", 1, ["{good.spq}: memory", "needs at least"]),
    (
        "run, ceiling too low",
        "run {good.spq} --prompt x --memory 10",
        1,
        ["{good.spq}: memory", "needs at least"],
    ),
    (
        "run, ceiling for a folder",
        "run {model} --prompt x --memory 1GiB",
        2,
        ["{model}: only an .spq file", "pack it first"],
    ),
    (
        "run, no such device",
        "run {good.spq} --prompt x --device tpu",
        2,
        ["'tpu' is not cpu, cuda or cuda:N"],
    ),
    (
        "run, no temperature",
        "run {good.spq} --prompt x --temperature nan",
        2,
        ["temperature nan: give 0, or a"],
    ),
    (
        "bits that are none",
        "pack {model} {dir}/o.spq --method ecq --bits nan",
        2,
        ["from 1 to 8"],
    ),
    ("eval, no text in it", "eval {good.spq} --text {blank.txt}", 2, ["{blank.txt}: no text in it"]),
    ("eval, no UTF-8", "eval {good.spq} --text {binary.txt}", 2, ["{binary.txt}: not UTF-8"]),
    (
        "eval, window too long",
        "eval {good.spq} --text {text.txt} --window 9999",
        2,
        ["window 9999: this model takes 2 to 128"],
    ),
    (
        "run, nothing to continue",
        "run {good.spq} --raw --prompt=",
        1,
        ["the prompt has no tokens; give some text"],
    ),
]
