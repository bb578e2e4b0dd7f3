"""The operations that sipnap ships: lookups by HTTP and by ENUM."""
