"""MiniGrid and BabyAI: exact pixels, experts, collected frames and demonstrations."""
