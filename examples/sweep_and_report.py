"""A sweep that is kept, and its report: Markdown, CSV, LaTeX, figures and a page. Kill it and run it again: it goes on."""

import subprocess
import sys
from pathlib import Path

from holdfast.sweep import sweep

SMALL = {"model": "gpt2:layers=4,width=32,heads=2", "stages": 4, "micro_batches": 2, "steps": 5, "seq_length": 32}


def main(out: Path) -> None:
    runs = sweep(
        SMALL,
        grid={"attack": ["none", "sign-flip", "gaussian,direction=backward"], "defence": ["none", "duplicate"]},
        seeds=2,
        out=out,
        tell=lambda record: print(f"{record.name}: {record.error or 'done'} in {record.seconds:.1f} s"),
    )
    worst = runs.loc[runs["validation_perplexity"].idxmax()]
    print(f"worst: {worst['attack']} against {worst['defence']}; to see it again:\n  {worst['command']}")
    holdfast = [sys.executable, "-m", "holdfast"]
    subprocess.run([*holdfast, "report", str(out), "--format", "all", "--to", str(out / "report")], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/sweep_and_report"))
