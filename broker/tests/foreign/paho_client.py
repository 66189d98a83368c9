"""A client for foreign_clients.rs: tells on standard output what happens to it.

The one argument is JSON: port, version (4 or 5), transport ("tcp" or "websockets"), ca,
certificate and key, or user and password, the filters forbidden and allowed.
"""

import json
import sys

import paho.mqtt.client as mqtt

setting = json.loads(sys.argv[1])
asked = {}


def tell(*words):
    print(*words, flush=True)


def on_connect(client, _userdata, _flags, reason, _properties):
    tell("connected" if reason == 0 else f"refused-connection {reason.value}")
    for kind in ("forbidden", "allowed"):
        _, identifier = client.subscribe(setting[kind], qos=1)
        asked[identifier] = kind


def on_subscribe(_client, _userdata, identifier, reasons, _properties):
    tell(asked.pop(identifier), reasons[0].value)


def on_message(_client, _userdata, message):
    tell("message", int(message.retain), message.payload.decode())


client = mqtt.Client(
    mqtt.CallbackAPIVersion.VERSION2,
    client_id="paho",
    protocol=mqtt.MQTTv5 if setting["version"] == 5 else mqtt.MQTTv311,
    transport=setting["transport"],
)
client.on_connect = on_connect
client.on_subscribe = on_subscribe
client.on_message = on_message
client.tls_set(setting["ca"], setting.get("certificate"), setting.get("key"))
if "user" in setting:
    client.username_pw_set(setting["user"], setting["password"])
client.reconnect_delay_set(1, 1)
client.connect("localhost", setting["port"])
client.loop_forever(retry_first_connection=True)
