"""Whether this node is able to checkpoint and restore: facts are gathered, and small pure checks judge them."""
