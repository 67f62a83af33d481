"""The losses of the tasks, one file a task. These files import torch; the tasks load them on use."""
