"""The machine: devices, precision, memory."""
