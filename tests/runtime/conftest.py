# SPDX-License-Identifier: Apache-2.0
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from vgen.runtime import reset_counters


def _load() -> ModuleType:
    # A module of its own in sys.modules, so that its classes have a source file and can be pickled.
    name = "vgen_tests_runtime_tiny"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("tiny.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """Tiny generated models."""
    return _load()


@pytest.fixture(autouse=True)
def _fresh_counters() -> None:
    reset_counters()
