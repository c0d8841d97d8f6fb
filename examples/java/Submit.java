// Sends a task over HTTP and prints what came of it: java Submit.java (Java 17 or newer).

// snippet:submit
import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.time.Duration;

public class Submit {
    static final URI API = URI.create(System.getenv().getOrDefault("MILLRACE_URL", "http://127.0.0.1:8080"));
    static final HttpClient HTTP = HttpClient.newBuilder().connectTimeout(Duration.ofSeconds(5)).build();

    public static void main(String[] args) throws Exception {
        var accepted = send(HttpRequest.newBuilder(API.resolve("/v1/tasks"))
            .header("Content-Type", "application/json")
            // Under one key a repeat is the same task.
            .header("Idempotency-Key", "ticket-1005/message-1")
            .POST(BodyPublishers.ofString("""
                {"conversation": "ticket-1005", "type": "chat.message", "payload": {"text": "Where is my order?"}}""")));
        var task = accepted.headers().firstValue("Location").orElseThrow();
        System.out.println(send(HttpRequest.newBuilder(API.resolve(task + "?wait=60s"))).body());
    }

    /** Sends until the API has answered. What passes (429, 5xx, a lost connection) is tried again. */
    static HttpResponse<String> send(HttpRequest.Builder request) throws Exception {
        for (int attempt = 0; ; attempt++) {
            long delay = 1L << attempt;
            try {
                var response = HTTP.send(request.timeout(Duration.ofSeconds(90)).build(), BodyHandlers.ofString());
                int status = response.statusCode();
                if (status < 300) {
                    return response;
                }
                if (attempt == 7 || status != 429 && status < 500) {
                    throw new IllegalStateException(response.body()); // problem+json: says what is wrong
                }
                delay = response.headers().firstValueAsLong("Retry-After").orElse(delay);
            } catch (IOException e) {
                if (attempt == 7) {
                    throw e;
                }
            }
            Thread.sleep(Duration.ofSeconds(delay).toMillis());
        }
    }
}
// snippet:end
