"""What running sandboxes use."""
