residency(JSON.parse($("data").textContent));
