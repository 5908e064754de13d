"""The virtual machine: its description, the guest kernel it boots, QEMU, and the jail around it."""
