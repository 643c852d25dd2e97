"""One file per verb that we intercept, and what they share: the call, and passing it on."""
