"""FORMAT.md section 7.1: which assets may be files in a folder."""

from fnmatch import fnmatchcase

DATA_ENDINGS = (
    ".bpe", ".cff", ".codes", ".csv", ".jinja", ".jsonl", ".model", ".model.v1", ".model.v11", ".model.v13",
    ".model.v2", ".model.v3", ".model.v7", ".spm", ".tiktoken", ".tsv", ".vocab",
)  # fmt: skip
DATA_NAMES = (
    "authors", "citation", "copying", "licence", "license", "license-apache", "license-code", "license-mit",
    "license-model", "model_license", "notice", "prophetnet.tokenizer", "readme", "usage_policy", "use_policy",
    "version",
)  # fmt: skip
JSON_NAMES = (
    "*_config.json", "*_map.json", "*_maps.json", "*_results.json", "*_vocab.json", "added_tokens.json",
    "chat_template*.json", "config*.json", "dtypes.json", "emoji.json", "id2label.json", "label2id.json",
    "labels.json", "mlc-chat-config.json", "model_index.json", "modelcard.json", "modules.json", "normalizer.json",
    "params.json", "quanto_qmap.json", "speaker_embeddings_path.json", "tekken.json", "tokenizer*.json",
    "trainer_state.json", "training_args.json", "unigram.json", "vocab*.json", "word_pronunciation.json",
    "word_shape.json",
)  # fmt: skip
MD_NAMES = (
    "*_card*.md", "*_guidance*.md", "*_guide*.md", "*deploy*.md", "*notice*.md", "acceptable_use*.md", "bias.md",
    "changelog*.md", "citation*.md", "code_of_conduct*.md", "copying*.md", "evaluation*.md", "explainability.md",
    "licence*.md", "license*.md", "model-card*.md", "modelcard*.md", "privacy.md", "prompt_format*.md", "readme*.md",
    "safety*.md", "security*.md", "support*.md", "terms*.md", "usage*.md", "use_policy*.md",
)  # fmt: skip
TXT_NAMES = (
    "*_vocab.txt", "*notice*.txt", "copying*.txt", "dict*.txt", "labels*.txt", "licence*.txt", "license*.txt",
    "merges*.txt", "readme*.txt", "stereo_chemical_props.txt", "system_prompt*.txt", "version.txt", "vocab*.txt",
)  # fmt: skip
FOLDER_ENDINGS = (".safetensors",)
CODE_ENDINGS = (".json", ".md", ".py", ".txt", ".yaml", ".yml")
NEVER_ENDINGS = (".index.json", "adapter_config.json")
DEVICE_NAMES = (
    "aux", "com0", "com1", "com2", "com3", "com4", "com5", "com6", "com7", "com8", "com9", "con", "lpt0", "lpt1",
    "lpt2", "lpt3", "lpt4", "lpt5", "lpt6", "lpt7", "lpt8", "lpt9", "nul", "prn",
)  # fmt: skip


def as_files(names: list[str]) -> dict[str, str]:
    """Return what each asset that may be a file is, "data" or "code"; `names` in the file's order."""
    found: dict[str, str] = {}
    earlier: list[str] = []
    for asset in names:
        # > All names are compared without regard to the case of letters.
        name = asset.lower()
        clashes = any(f"{name}/".startswith(f"{other}/") or other.startswith(f"{name}/") for other in earlier)
        earlier.append(name)
        # > Not allowed, whatever else holds, is a name that ends with one of `never_endings`, that has a part that
        # > begins with `.` or `-`, ends with `.` or is, up to its first `.`, one of `device_names`, or that equals the
        # > name of an earlier asset or, one of the two followed by `/`, begins it or begins with it.
        parts = name.split("/")
        odd = any(p[0] in ".-" or p[-1] == "." or p.split(".")[0] in DEVICE_NAMES for p in parts)
        if clashes or odd or name.endswith(NEVER_ENDINGS):
            continue
        # > An asset is *data* when the last part of its name ends with one of `data_endings`, is one of `data_names`,
        # > `json_names`, `md_names` and `txt_names`, in which `*` stands for any characters or none, or, in a name of
        # > several parts, ends with one of `folder_endings`. It is *code* when it is not data and that part ends with
        # > one of `code_endings`.
        last = parts[-1]
        if (
            last.endswith(DATA_ENDINGS)
            or any(
                fnmatchcase(last, pattern) for pattern in (*DATA_NAMES, *JSON_NAMES, *MD_NAMES, *TXT_NAMES)
            )
            or (len(parts) > 1 and last.endswith(FOLDER_ENDINGS))
        ):
            found[asset] = "data"
        elif last.endswith(CODE_ENDINGS):
            found[asset] = "code"
    return found
