"""The worker: what a pilot runs on a node; library instances, their zygotes and slots."""
