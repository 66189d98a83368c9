// A client for foreign_clients.rs: tells on standard output what happens to it.
//
// The one argument is JSON: port, version (4 or 5), transport ("tcp" or "websockets"), ca,
// certificate and key, or user and password, the filters forbidden and allowed.

const fs = require("fs");
const mqtt = require("mqtt");

const setting = JSON.parse(process.argv[2]);
const read = (name) => (setting[name] ? fs.readFileSync(setting[name]) : undefined);
const scheme = setting.transport === "websockets" ? "wss" : "mqtts";
const files = { ca: read("ca"), cert: read("certificate"), key: read("key") };
const client = mqtt.connect(`${scheme}://localhost:${setting.port}/mqtt`, {
  clientId: "mqttjs",
  protocolVersion: setting.version,
  username: setting.user,
  password: setting.password,
  reconnectPeriod: 500,
  resubscribe: false,
  ...files,
  wsOptions: files,
});

client.on("connect", () => {
  console.log("connected");
  client.subscribe(setting.forbidden, { qos: 1 });
  client.subscribe(setting.allowed, { qos: 1 });
});
const asked = new Map();
client.on("packetsend", (packet) => {
  if (packet.cmd === "subscribe") {
    const forbidden = packet.subscriptions[0].topic === setting.forbidden;
    asked.set(packet.messageId, forbidden ? "forbidden" : "allowed");
  }
});
client.on("packetreceive", (packet) => {
  if (packet.cmd === "suback") {
    console.log(asked.get(packet.messageId), packet.granted[0]);
  }
});
client.on("message", (topic, payload, packet) => {
  console.log("message", packet.retain ? 1 : 0, payload.toString());
});
// A broker that is away; it tries again.
client.on("error", (error) => console.error(error.message));
