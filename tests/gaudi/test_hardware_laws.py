"""The laws for real hardware, on the stand-in: so they are known to run, and to hold where they can be checked."""

from __future__ import annotations

import pytest

from tests.gaudi.helpers import needs_optimum, options
from tests.hardware.gaudi_laws import GaudiLaws

pytestmark = needs_optimum


class TestOnTheStandin(GaudiLaws):
    """Graphs, in bfloat16 as on a Gaudi."""

    requests = 8

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _options(cls) -> None:
        cls.options = options()
