"""Steps inside a stage: the choice of settings, the stacking, the final model, the ablation."""
