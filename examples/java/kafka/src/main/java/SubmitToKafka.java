// Sends a task straight to Kafka and prints what came of it: mvn -q compile exec:java

// snippet:submit
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.StringSerializer;

public class SubmitToKafka {
    public static void main(String[] args) throws Exception {
        // The defaults are right: murmur2, acks=all, idempotent.
        Map<String, Object> config = Map.of(ProducerConfig.BOOTSTRAP_SERVERS_CONFIG,
            System.getenv().getOrDefault("MILLRACE_KAFKA_BROKERS", "localhost:9092"));
        // The key is the conversation. Under one ce_id a repeat is the same task.
        var task = new ProducerRecord<>("millrace.tasks.normal", "ticket-1006", "{\"text\": \"Where is my order?\"}");
        Map.of("ce_specversion", "1.0", "ce_id", "ticket-1006.message-1", "ce_source", "/support/desk",
                "ce_type", "chat.message", "content-type", "application/json")
            .forEach((name, value) -> task.headers().add(name, value.getBytes(StandardCharsets.UTF_8)));

        try (var producer = new KafkaProducer<>(config, new StringSerializer(), new StringSerializer())) {
            producer.send(task).get();
        }

        var api = System.getenv().getOrDefault("MILLRACE_URL", "http://127.0.0.1:8080");
        var result = HttpRequest.newBuilder(URI.create(api + "/v1/tasks/ticket-1006.message-1?wait=60s")).build();
        System.out.println(HttpClient.newHttpClient().send(result, BodyHandlers.ofString()).body());
    }
}
// snippet:end
