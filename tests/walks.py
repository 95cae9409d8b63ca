"""How long the random walks of events are, and how many."""

from hypothesis import HealthCheck, settings

WALKS = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
