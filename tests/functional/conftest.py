"""For the tests that run models: few threads, because tests run side by side, and counters that start at zero."""

from __future__ import annotations

import pytest
import torch

import vgen.runtime as runtime

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _counters() -> None:
    runtime.reset_counters()


def pytest_configure(config: pytest.Config) -> None:
    # What PyTorch logs for trace files would fill the screen when a test fails.
    plugin = config.pluginmanager.get_plugin("logging-plugin")
    if plugin is not None:
        plugin.report_handler.addFilter(lambda record: not record.name.startswith("torch.__trace"))
