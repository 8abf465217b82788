"""What people reason about numerics with: the exact model, explanations, traces, tolerances, studies, probes."""
