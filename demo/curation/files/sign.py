#!/usr/bin/env python3
"""Switches the warning sign on: here it writes a line into a file, and tells everybody that the sign is on."""

import json
import sys

alert = json.load(sys.stdin)
with open("signs.txt", "a") as switched:
    switched.write(f"{alert['value']['kind']}\n")
key = alert["key"].removesuffix("/alert") + "/sign"
print(json.dumps({"key": key, "value": {"on": True, "because": alert["value"]["kind"]}, "priority": 6}))
