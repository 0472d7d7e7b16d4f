# SPDX-License-Identifier: Apache-2.0
"""What is said of two keys that differ."""

from vgen.runtime.key import differences


def test_of_a_variant_the_arguments_that_differ_are_named() -> None:
    ours = {"variant": [False, "input_ids", ["torch.Tensor", "torch.int64", -1], "use_cache", True]}
    theirs = {"variant": [False, "input_ids", ["torch.Tensor", "torch.int64", 1], "use_cache", True]}
    assert differences(ours, theirs) == ["variant.input_ids.2: -1 here, 1 there"]


def test_lists_of_other_lengths_are_told_whole() -> None:
    assert differences({"sizes": [1, 2]}, {"sizes": [1]}) == ["sizes: [1, 2] here, [1] there"]
