"""What a claim is about, as people read it, as tables sort it, and as nobody can change it."""

from dataclasses import FrozenInstanceError, replace

import pytest

from holdfast.claim import WHOLE_STEP, ClaimKey, Direction, Header, Role

FORWARD, BACKWARD, GRADIENT, UPDATE = Direction


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (ClaimKey(7, 0, FORWARD, 2, 3), "forward of stage 2, step 7 micro-batch 3"),
        (ClaimKey(7, 2, BACKWARD, 2, 0), "backward of stage 2, step 7 micro-batch 0 attempt 2"),
        (ClaimKey(7, 0, GRADIENT, 1), "gradient of stage 1, step 7"),
        (ClaimKey(0, 1, UPDATE, 4), "update of stage 4, step 0 attempt 1"),
    ],
)
def test_a_key_reads_like_a_sentence(key, text):
    assert str(key) == text


def test_a_gradient_and_an_update_speak_of_the_whole_step():
    assert ClaimKey(0, 0, GRADIENT, 1).micro_batch == WHOLE_STEP == -1


def test_every_field_of_a_key_counts():
    key = ClaimKey(1, 1, FORWARD, 1, 1)
    others = [replace(key, **{field: 0}) for field in ("step", "attempt", "stage", "micro_batch")]
    assert len({key, replace(key, direction=BACKWARD), *others}) == 6


def test_keys_sort_by_step_then_attempt():
    keys = [ClaimKey(1, 0, FORWARD, 0, 0), ClaimKey(0, 1, FORWARD, 0, 0), ClaimKey(0, 0, UPDATE, 9)]
    assert sorted(keys) == keys[::-1]


def test_a_header_cannot_be_edited():
    header = Header("run", ClaimKey(0, 0, FORWARD, 1, 0), 0, 0, "w1", Role.PRIMARY, (), b"digest")
    with pytest.raises(FrozenInstanceError):
        header.output = b"another"
