"""Keep a run's signed evidence, check it as a stranger would, and see that a changed record is found."""

import tempfile
from pathlib import Path

from holdfast import Experiment
from holdfast.evidence import story
from holdfast.evidence.audit_log import audit
from holdfast.evidence.casebook import Law
from holdfast.verify.recompute import compare
from holdfast.verify.referee import judge, misstates

LAW = Law(compare, judge, misstates)


def main(out: Path) -> None:
    Experiment(steps=6, stages=5, attack="sign-flip,rate=0.5", out=str(out)).run()
    evidence = (out / "evidence.jsonl").read_bytes()

    found = audit(evidence, LAW)
    print(f"{found.status}: {len(found.disputes)} disputes; proven guilty: {', '.join(found.guilty) or 'nobody'}")
    print("\n".join(story.explain(found, found.disputes[0])))

    altered = evidence.replace(b'"w2"', b'"w3"', 1)
    print(f"with one name changed: {audit(altered, LAW).status}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder) / "run")
