"""FORMAT.md section 7.1: which assets may be files in a folder."""

DATA_ENDINGS = (
    ".bpe", ".cff", ".codes", ".csv", ".jinja", ".json", ".jsonl", ".md", ".model", ".model.v1", ".model.v11",
    ".model.v13", ".model.v2", ".model.v3", ".model.v7", ".spm", ".tiktoken", ".tsv", ".txt", ".vocab",
)  # fmt: skip
DATA_NAMES = (
    "authors", "citation", "copying", "licence", "license", "license-apache", "license-code", "license-mit",
    "license-model", "notice", "readme", "use_policy", "version",
)  # fmt: skip
FOLDER_ENDINGS = (".safetensors",)
CODE_ENDINGS = (".py", ".yaml", ".yml")
CODE_NAMES = (
    "agents.md", "claude.md", "cmakelists.txt", "composer.json", "deno.json", "gemini.md", "package.json",
    "requirements.txt",
)  # fmt: skip
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
        # > begins or ends with `.` or is, up to its first `.`, one of `device_names`, or that equals the name of an
        # > earlier asset or, one of the two followed by `/`, begins it or begins with it.
        parts = name.split("/")
        odd = any(p[0] == "." or p[-1] == "." or p.split(".")[0] in DEVICE_NAMES for p in parts)
        if clashes or odd or name.endswith(NEVER_ENDINGS):
            continue
        # > An asset is *code* when the last part of its name ends with one of `code_endings` or is one of `code_names`;
        # > otherwise it is *data* when that part ends with one of `data_endings`, is one of `data_names`, or, in a name
        # > of several parts, ends with one of `folder_endings`.
        last = parts[-1]
        if last.endswith(CODE_ENDINGS) or last in CODE_NAMES:
            found[asset] = "code"
        elif (
            last.endswith(DATA_ENDINGS)
            or last in DATA_NAMES
            or (len(parts) > 1 and last.endswith(FOLDER_ENDINGS))
        ):
            found[asset] = "data"
    return found
