"""The contract suite finds each kind of broken attack."""

import sys
from typing import ClassVar

import pytest
import torch

from holdfast.attacks import Attack
from holdfast.testing import check_attack


class Good(Attack):
    def forge(self, honest, scene):
        return honest * 2


class InPlace(Attack):
    def forge(self, honest, scene):
        return honest.mul_(2)


class SpoilsInput(Attack):
    def forge(self, honest, scene):
        scene.inputs[0].zero_()
        return honest * 2


class SpoilsGradient(Attack):
    def forge(self, honest, scene):
        scene.gradient.zero_()
        return honest * 2


class GlobalRandom(Attack):
    def forge(self, honest, scene):
        torch.rand(1)
        return honest * 2


class Unseeded(Attack):
    calls = 0

    def forge(self, honest, scene):
        Unseeded.calls += 1
        return honest + Unseeded.calls


class Narrow(Attack):
    def forge(self, honest, scene):
        return honest[:, :1]


class Widened(Attack):
    def forge(self, honest, scene):
        return honest.double()


class Honest(Attack):
    def forge(self, honest, scene):
        return honest.clone()


class Chatty(Attack):
    def forge(self, honest, scene):
        sys.stdout.write("forging\n")
        return honest * 2


class Nowhere(Good):
    choices: ClassVar = {"forward": frozenset()}


class NotATensor(Attack):
    def forge(self, honest, scene):
        return honest.tolist()


def test_a_good_attack_passes():
    check_attack(Good)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (InPlace, "changed the honest tensor in place"),
        (SpoilsInput, "changed an input in place"),
        (SpoilsGradient, "changed the known gradient in place"),
        (GlobalRandom, "drew a global random number"),
        (Unseeded, "two tensors for one scene"),
        (Narrow, "needed"),
        (Widened, "needed"),
        (Honest, "gave the honest output back"),
        (Chatty, "printed 'forging"),
        (Nowhere, "directions is empty"),
        (NotATensor, "not a tensor"),
        (lambda: "sign-flip", "not an object of a subclass"),
    ],
)
def test_a_broken_attack_is_named(factory, message):
    with pytest.raises(AssertionError, match=message):
        check_attack(factory)
