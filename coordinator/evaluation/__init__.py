"""How good the choice of experts is: moe2 against baselines on outcomes that were held out."""
