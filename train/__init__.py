"""Training: architectures, data sets, losses. Needs torch; the runtime never imports it."""
