"""A seed is a name: the same labels give the same stream everywhere, other labels another."""

from holdfast.seeds import derive


def test_seeds_are_the_same_on_every_machine_and_in_every_version():
    assert derive(0, "batch", 7) == 2445664188435486173
    assert derive(1) == 3874038210105081456


def test_labels_do_not_run_into_one_another():
    labels = [("a",), ("b",), ("a", "b"), ("ab",), ("1",), (1,), ("a", 1), ("a", "1"), ("a", 11), ("a", 1, 1)]
    found = {derive(seed, *label) for seed in (0, 1, 10) for label in labels}
    assert len(found) == 3 * len(labels)


def test_a_seed_fits_into_63_bits():
    assert all(0 <= derive(seed, "x") < 2**63 for seed in range(200))
