"""The HTTP interface: the only place that knows HTTP, and the only part that faces clients."""
