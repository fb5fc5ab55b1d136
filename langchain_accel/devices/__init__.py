"""One module per device, loaded by name when asked for; `base` is the cut line they all meet."""
