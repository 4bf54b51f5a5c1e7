"""What people see: the terminal report and the measurements in it."""
