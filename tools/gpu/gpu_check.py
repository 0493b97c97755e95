"""The first run on a GPU, in one command: are the kernels right, how fast are they, do the ceilings hold.

    python tools/gpu/gpu_check.py [--device cuda] [--kernels triton|torch] [--model FILE.spq] [--json OUT] [--rates OUT]
    python tools/gpu/gpu_check.py --report LINES [--json OUT] [--rates OUT]

Ten minutes in sections, the most worth first. Each is a process of its own with a time-out of its own, and each line
is in the file --lines as soon as it is known: a section that dies, hangs or gives wrong bits is one line in the report,
and --report makes the report from the file of a run that was cut off. One table on stdout, one JSON object with --json,
and with --rates the measured rates that `spqfmt plan --device cuda --device-rates FILE` takes. Exit code 1 when
anything is wrong or was not run. `--device simulated` runs the same checks on the CPU, small: its times are the CPU's
and say nothing about a GPU.
"""

import argparse
import json
import signal
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gpu_lines import Line, append, read_lines
from gpu_report import shown, summary
from gpu_runner import Section, run_sections

SECTIONS = (
    Section("environment", "gpu_environment:environment", 45, 45),
    Section("smoke", "gpu_kernels:smoke", 60, 60),
    Section("kernels", "gpu_kernels:kernels", 150, 60),
    Section("file", "gpu_model:make", 90, 90),
    Section("decode", "gpu_decode:decode", 75, 45),
    Section("products", "gpu_products:products", 45, 30),
    Section("fused", "gpu_straight:straight", 60, 45),
    Section("model", "gpu_model:residencies", 90, 45),
    Section("graphs", "gpu_graphs:graphs", 60, 45),
    Section("ceilings", "gpu_ceilings:driver_memory", 45, 30),
    Section("plan", "gpu_model:predicted", 30, 30),
    Section("peers", "gpu_products:peers", 60, 30),
)
"""In order of worth. Together they may take longer than a run: what one leaves over is the next one's."""
SECONDS = 600.0


def main(arguments: list[str] | None = None) -> int:
    """Run the tool, whose help is the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--kernels")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rates", type=Path)
    parser.add_argument("--lines", type=Path, default=Path("gpu-check.jsonl"))
    parser.add_argument("--report", type=Path)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    options = parser.parse_args(arguments)
    if options.report is not None:
        return report(read_lines(options.report), options.json, options.rates)
    chosen = ["--device", options.device]
    for name in ("kernels", "model"):
        if (value := getattr(options, name)) is not None:
            chosen += [f"--{name}", str(value)]
    return check(options, chosen)


def check(options: argparse.Namespace, chosen: list[str], sections: tuple[Section, ...] = SECTIONS) -> int:
    """Run the sections and make the report, also of a run that is told to end."""
    path = options.lines.resolve()
    path.unlink(missing_ok=True)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    append(path, {"kind": "run", "started": started, "sections": [section.name for section in sections]})
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        with tempfile.TemporaryDirectory() as folder:
            run_sections(sections, path, [*chosen, "--folder", folder], options.seconds)
    finally:
        signal.signal(signal.SIGTERM, before)
        code = report(read_lines(path), options.json, options.rates)
    return code


def report(lines: list[Line], json_path: Path | None, rates_path: Path | None) -> int:
    """Show the report and write what was asked for. 1 unless all is right."""
    result = summary(lines)
    print("\n".join(shown(lines)))
    for path, value in ((json_path, result), (rates_path, result["rates"])):
        if path is not None:
            path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
