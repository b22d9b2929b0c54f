"""From a trained model to honest figures: predictions, baselines, plots and reports."""
