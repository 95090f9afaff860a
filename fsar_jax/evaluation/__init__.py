"""The accuracy of a trained model: cached evaluation, results files and their comparison."""
