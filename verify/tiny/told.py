"""Fields that model code misses in a tiny config: it says which when it's run."""

from __future__ import annotations

import copy
import re

from transformers import PreTrainedConfig

from .fields import MISSING, UNDECLARED
from .tree import read

_NOT_SET = re.compile(r"[Cc]ould not find an? `(\w+)` argument in the config")


def set_missed(config: PreTrainedConfig, error: BaseException | None) -> bool:
    """Set the field that `error` is about, on the configs in the tree of `config` that lack it; whether any was set."""
    configs = [each.config for each in read(config).all()]
    if isinstance(error, AttributeError) and error.name in UNDECLARED:
        name = error.name
        value = UNDECLARED[name]
        lacking = [each for each in configs if type(each) is type(error.obj) and name not in vars(each)]
    elif (found := _NOT_SET.search(str(error))) and found[1] in MISSING:
        name = found[1]
        value = MISSING[name]
        lacking = [each for each in configs if name in vars(each) and vars(each)[name] is None]
    else:
        return False
    for each in lacking:
        setattr(each, name, copy.deepcopy(value))
    return bool(lacking)
