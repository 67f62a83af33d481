"""How many examples the tests over random inputs look at: a few, or as many as ``MIL_ZOO_EXAMPLES`` says."""

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings

from mil_zoo import InputError

some = settings(
    max_examples=int(os.environ.get("MIL_ZOO_EXAMPLES", "30")),
    deadline=None,  # the first example compiles, and machines are busy
    derandomize="MIL_ZOO_EXAMPLES" not in os.environ,  # a budget of one's own looks at other examples each time
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def attempt(call: Callable[[], Any]) -> tuple[Any, str]:
    """What a call gives and "", or None and the sentence that refuses it; any other error is a fault."""
    try:
        return call(), ""
    except InputError as error:
        return None, str(error)
