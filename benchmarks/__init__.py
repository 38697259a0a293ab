"""What vllama costs, each number beside what it is compared with, all of one run."""
