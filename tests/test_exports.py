"""The public names: complete, importable, and late."""

import subprocess
import sys

import holdfast


def test_all_names_everything_public() -> None:
    assert sorted(holdfast.__all__) == sorted([*holdfast._HOMES, "__version__"])
    for name, home in holdfast._HOMES.items():
        assert getattr(holdfast, name) is getattr(__import__(home, fromlist=[name]), name)


def test_importing_the_package_or_the_command_line_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'pydantic', 'rich', 'numpy'}"
    program = f"import sys, holdfast.cli.main; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
