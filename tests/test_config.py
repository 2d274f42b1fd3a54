"""Settings: what is wrong is named, with what would be right; a written config reads back equal."""

import tomllib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from holdfast.config import AttackConfig, RunConfig, resolve
from holdfast.errors import ConfigError
from holdfast.settings import numbers
from holdfast.toml import assign, parse_spec, read_toml, to_toml


def test_the_defaults_stand_alone():
    config = resolve({})
    assert config == RunConfig()
    assert config.defence_name == "duplicate"
    assert resolve({"pipeline": {"stages": 2}}).defence_name == "none"


@pytest.mark.parametrize(
    ("tables", "complaint"),
    [
        ({"trainin": {"steps": 3}}, r"unknown setting 'trainin'; here stand: model, data"),
        ({"9" * 5000: 3}, r"unknown setting '9{80}\.\.\.'; here stand: model"),
        ({"training": {"step": 3}}, r"unknown setting 'training.step'; here stand: steps, seed, evaluate_every"),
        ({"attack": [{"spec": "zeros", "rat": 1}]}, r"unknown setting 'attack.0.rat'; here stand: spec, rate"),
        ({"training": {"steps": 0}}, r"training.steps: .*greater than or equal to 1, got 0"),
        ({"training": {"steps": "many"}}, r"training.steps: .*integer.*, got 'many'"),
        ({"model": {"dropout": 1.0}}, r"model.dropout: .*less than 1"),
        ({"defence": {"on_alert": ""}}, r"defence.on_alert: .*at least 1 character, got ''"),
        ({"pipeline": {"stages": 2}, "defence": {"name": "duplicate"}}, r"2 stages.*nothing to defend; use --stages 3"),
        ({"pipeline": {"stages": 2}, "attack": [{"spec": "zeros"}]}, r"attack 'zeros' with 2 stages"),
        ({"attack": [{"spec": "zeros", "stages": [0]}]}, r"names stage 0, but with 6 stages the attackable ones are 1 to 4"),
        ({"attack": [{"spec": "zeros", "stages": [4, 5]}]}, r"names stage 5, .*1 to 4"),
        ({"pipeline": {"stages": 4}, "cluster": {"speeds": [1, 2, 3]}}, r"has 3 entries; it needs one for each of 4 stages"),
    ],
)
def test_what_is_wrong_is_named(tables, complaint):
    with pytest.raises(ConfigError, match=complaint):
        resolve(tables)


def test_every_wrong_key_is_named_at_once():
    with pytest.raises(ConfigError, match=r"(?s)'model.nam'.*; .*'data.nam'"):
        resolve({"model": {"nam": "x"}, "data": {"nam": "y"}})


# -- TOML ----------------------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(min_codepoint=32, exclude_characters="\x7f", exclude_categories=["Cs"]))


@given(TEXT, TEXT, st.floats(0, 1), st.floats(1e-300, 1e300), st.lists(TEXT), st.booleans())
@example('a"b\\', "C:\\new, 'x'", 0.1, 3e-4, ['"""', "\\"], True)
def test_a_written_config_reads_back_equal(name, spec, rate, learning_rate, faults, persistent):
    attack = AttackConfig(spec=spec, rate=rate, stages=(1, 4), persistent=persistent)
    tables = {
        "data": {"name": name},
        "optimizer": {"learning_rate": learning_rate},
        "attack": [attack.model_dump(), {"spec": "zeros"}],
        "faults": faults,
        "cluster": {"speeds": [1.0, 0.5, 2, 1, 1, 1e-7], "wire_check": persistent},
    }
    config = resolve(tables)
    assert resolve(tomllib.loads(to_toml(config))) == config


def test_a_written_config_reads_back_equal_with_control_characters():
    config = resolve({"output": {"dir": "odd\tname\nof a directory\x7f"}})
    assert resolve(tomllib.loads(to_toml(config))) == config


def test_a_missing_or_malformed_file_is_told_apart(tmp_path):
    with pytest.raises(ConfigError, match="no config file at"):
        read_toml(tmp_path / "absent.toml")
    broken = tmp_path / "broken.toml"
    for content in (b"[training\nsteps=3", b"name = '\xff'"):
        broken.write_bytes(content)
        with pytest.raises(ConfigError, match=r"broken.toml is not valid TOML"):
            read_toml(broken)
    broken.write_text("[training]\nsteps = 3\n")
    assert read_toml(broken) == {"training": {"steps": 3}}


# -- the command line's words --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("  3 ", 3),
        ("3.5", 3.5),
        ("true", True),
        ("[1, 2]", [1, 2]),
        ('"3"', "3"),
        ("word", "word"),
        ("a=b", "a=b"),
        ("", ""),
    ],
)
def test_a_value_is_toml_or_a_bare_word(text, value):
    assert assign({}, [f" a.b = {text}"]) == {"a": {"b": value}}


def test_assignments_leave_the_given_tables_alone():
    given = {"training": {"steps": 3}, "faults": []}
    assert assign(given, ["training.steps=4", "faults=['x']"]) == {"training": {"steps": 4}, "faults": ["x"]}
    assert given == {"training": {"steps": 3}, "faults": []}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("training.steps", "expected section.key=value"),
        ("=3", "expected section.key=value"),
        ("faults.x=1", "is a value, not a"),
    ],
)
def test_an_assignment_that_makes_no_sense(text, complaint):
    with pytest.raises(ConfigError, match=complaint):
        assign({"faults": []}, [text])


@pytest.mark.parametrize(
    ("text", "name", "parameters"),
    [
        ("zeros", "zeros", {}),
        ("sign-flip,direction=both", "sign-flip", {"direction": "both"}),
        ("my.py:Mine,size=2,honest-first=true", "my.py:Mine", {"size": 2, "honest_first": True}),
        ("gpt2:layers=6,width=64", "gpt2", {"layers": 6, "width": 64}),
        ("/models/gpt2", "/models/gpt2", {}),
    ],
)
def test_a_spec_is_a_name_with_parameters(text, name, parameters):
    assert parse_spec(text) == (name, parameters)


@pytest.mark.parametrize("text", ["zeros,size", "zeros,=3", "zeros,"])
def test_a_parameter_without_a_value_is_refused(text):
    with pytest.raises(ConfigError, match=r"expected param=value after the name"):
        parse_spec(text)


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 5_000,
        "[training]\nsteps = 0x" + "F" * 5_000,
        "[training]\nsteps = " + "9" * 5_000,
        "a." * 5_000 + "b = 1",
    ],
    ids=["deep", "long", "longer", "dotted"],
)
def test_a_file_beyond_all_bounds_is_refused_like_any_other(tmp_path, text):
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(ConfigError, match="not valid TOML"):
        read_toml(tmp_path / "run.toml")


def test_a_directory_is_no_config_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        read_toml(tmp_path)


@pytest.mark.parametrize("value", ["0x" + "F" * 5_000, "[" * 5_000, "9" * 5_000])
def test_a_value_of_the_command_line_beyond_all_bounds_is_a_word(value):
    with pytest.raises(ConfigError, match=r"training\.steps: ") as refusal:
        resolve(assign({}, [f"training.steps={value}"]))
    assert len(str(refusal.value)) < 300


def test_a_value_that_cannot_be_printed_is_refused_all_the_same():
    deep = {}
    for _ in range(5_000):
        deep = {"a": deep}
    for value in (10**5_000, deep):
        with pytest.raises(ConfigError, match=r"training\.(steps|seed): "):
            resolve({"training": {"steps": value, "seed": -1}})


@pytest.mark.parametrize("text", ["0-99999999999", "1," + "9" * 5_000])
def test_a_range_of_stages_is_not_counted_to_infinity(text):
    with pytest.raises(ConfigError, match="expected numbers such as"):
        numbers(text, "stages")


@pytest.mark.parametrize("part", [[0.5, 0.5], [0.6, 0.5], [-0.1, 0.5], [0.0, 1.5]])
def test_a_part_of_the_text_that_is_none_is_refused(part):
    with pytest.raises(ConfigError, match=r"train_part"):
        resolve({"data": {"train_part": part}})
