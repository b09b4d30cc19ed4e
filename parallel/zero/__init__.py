"""ZeRO: DeepSpeed's engine behind a small interface, its gradients, masters and training state."""
