"""Methods that imitate a policy: distillation with DAgger."""
