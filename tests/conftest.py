"""What all tests share: the Hypothesis profiles."""

import os

from hypothesis import HealthCheck, settings

# One profile for `make check` everywhere: the same examples on every run, so that a red run is red again; no deadline,
# since a shared two-core machine stalls for longer than any example takes. "wide" is for looking for new failures.
settings.register_profile(
    "check",
    derandomize=True,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("wide", deadline=None, max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "check"))
