"""What is in a checkpoint, and what differs between two, for people. No page is read, nothing unpacked or changed."""
