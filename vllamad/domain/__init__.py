"""Pure rules (floor 1): no IO, no clock, no asyncio; time comes in as a number."""
