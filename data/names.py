"""Names of events. ASCII, short, and none a part of another."""

EVENT_NAMES = (
    "Archery lesson", "Baking workshop", "Band practice", "Board meeting", "Boat trip",
    "Bread tasting", "Campus tour", "Castle walk", "Chess match", "City run",
    "Code review", "Cycling race", "Debate night", "Design sprint", "Drawing circle",
    "Drum lesson", "Estate viewing", "Fencing bout", "Fire drill", "Fishing trip",
    "Flower arranging", "Game jam", "Garden party", "Harbour cruise", "History lecture",
    "Horse riding", "Improv theatre", "Jazz concert", "Job interview", "Kite festival",
    "Lab inspection", "Laser show", "Maths tutorial", "Museum tour", "Night market",
    "Opera evening", "Paper folding", "Photo walk", "Picnic lunch", "Poetry reading",
    "Press briefing", "Puppet theatre", "Radio interview", "Rowing practice", "Salsa night",
    "Sculpture park", "Ski lesson", "Spanish exam", "Street parade", "Swim meet",
    "Table tennis", "Tea ceremony", "Vet visit", "Yoga class", "Zoo visit",
)  # fmt: skip
