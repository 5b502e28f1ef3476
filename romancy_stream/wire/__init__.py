"""CloudEvents on the wire: the hot path's own event value and codec, and the names outsiders build on."""
