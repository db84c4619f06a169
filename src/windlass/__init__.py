"""Windlass runs Python functions on HTCondor and Slurm, with hoisted imports."""
