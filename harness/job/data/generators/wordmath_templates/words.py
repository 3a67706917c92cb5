"""Names and nouns of the generated word problems."""

from __future__ import annotations

# fmt: off
NAMES = (
    "Ada", "Alan", "Amir", "Anna", "Ben", "Bella", "Carl", "Clara", "Dan", "Diego", "Elena", "Emma", "Eric", "Farah",
    "Felix", "Grace", "Hana", "Hugo", "Ines", "Ivan", "Jack", "Jana", "Kai", "Kate", "Leo", "Lina", "Luca", "Maria",
    "Max", "Mei", "Mia", "Nina", "Noah", "Nora", "Omar", "Owen", "Paul", "Priya", "Rosa", "Ruth", "Sam", "Sara",
    "Tara", "Theo", "Tom", "Uma", "Vera", "Will", "Yara", "Zoe",
)
# fmt: on

SMALL = ("apples", "buttons", "cards", "coins", "marbles", "pebbles", "pencils", "shells", "stamps", "stickers")
GOODS = ("bowls", "candles", "cups", "mugs", "notebooks", "pens", "plates", "scarves", "socks", "towels")
TREATS = ("biscuits", "cookies", "muffins", "pancakes", "pies", "rolls", "tarts", "waffles")
FRUIT = ("lemons", "mangoes", "melons", "oranges", "peaches", "pears", "plums", "tomatoes")
SINGLE = ("a bag", "a book", "a clock", "a hat", "a kite", "a lamp", "a puzzle", "an apron", "an umbrella")
DEAR = ("a bike", "a camera", "a guitar", "a phone", "a radio", "a scooter", "a telescope", "an armchair")
BOXES = ("bags", "baskets", "boxes", "crates", "sacks", "trays")
PLANTS = ("beans", "cabbages", "carrots", "roses", "tulips", "vines")
SHOPS = ("A bakery", "A corner shop", "A farm shop", "A kiosk", "A market stall")
RIDES = ("A bus", "A ferry", "A train", "A tram")
JOBS = ("at a bakery", "at a cafe", "at a farm", "at a garage", "at a library", "in a garden", "in a shop")
