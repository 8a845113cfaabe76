"""What zbus-farm is made of: its file, the workflow, who does which job, the pictures."""
